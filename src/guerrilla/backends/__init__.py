"""The production line: processors stacked on one another, the gateway that feeds them, and group commit."""

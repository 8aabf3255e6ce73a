"""The processors that are shipped: one file each, named as the processor."""

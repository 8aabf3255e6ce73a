"""MailDiranasaurus: guerrilla as a part of another program, which has its own command, and MailDir and FastCGI in line.

cd examples
python -m maildiranasaurus serve -c maildiranasaurus/maildiranasaurus.conf
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import guerrilla
from guerrilla.config import load

app = typer.Typer(help="A dinosaur that puts mail into Maildirs.", no_args_is_help=True, add_completion=False)


@app.command()
def serve(
    config: Annotated[Path, typer.Option("--config", "-c", help="The configuration.")] = Path("maildiranasaurus.conf"),
    pid_file: Annotated[str, typer.Option("--pidFile", "-p", help="In the place of pid_file.")] = "",
) -> None:
    """Receive mail until SIGTERM, SIGINT (Ctrl-C) or SIGQUIT; messages on their way are finished first."""
    try:
        settings = load(config)
        if pid_file:
            settings = settings.model_copy(update={"pid_file": pid_file})
        daemon = guerrilla.Daemon(settings)
        daemon.run(lambda running: typer.echo(f"the dinosaur is awake, and listens on {_addresses(running)}"))
    except (guerrilla.ConfigError, guerrilla.StartError) as error:
        typer.echo(error, err=True)
        raise typer.Exit(1) from None


@app.command()
def version() -> None:
    """Print the version of guerrilla."""
    typer.echo(f"MailDiranasaurus, made of guerrilla {guerrilla.__version__}")


def _addresses(daemon: guerrilla.Daemon) -> str:
    return ", ".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for _, (host, port) in daemon.addresses)


if __name__ == "__main__":
    app(prog_name="maildiranasaurus")

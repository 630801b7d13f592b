"""`tuna-trl env`: what a bug report needs."""

from __future__ import annotations

import json
from typing import Annotated

import typer


PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "huggingface_hub",
    "bitsandbytes",
    "anthropic",
    "rapidfuzz",
)


def env(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
) -> None:
    """Print versions, device and cache folder, for a bug report. Prints no key and no token."""
    import os
    import platform
    from importlib import metadata

    from .._version import __version__
    from ..loading import cache_folder

    lines = [("tuna-trl", __version__), ("python", platform.python_version()), ("platform", platform.platform())]
    for package in PACKAGES:
        try:
            lines.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            lines.append((package, "not installed"))
    import torch

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    lines += [
        ("CUDA device", device),
        ("threads", str(torch.get_num_threads())),
        ("cache", str(cache_folder())),
        ("ANTHROPIC_API_KEY", "set" if os.environ.get("ANTHROPIC_API_KEY") else "not set"),
    ]
    if as_json:
        typer.echo(json.dumps(dict(lines), indent=2))
        return
    for name, value in lines:
        typer.echo(f"{name + ':':<20} {value}")
    typer.echo("Next: tuna-trl demo, which needs no key, no network and no GPU")

"""Configurations of `accelerate launch`, one a file; `tuna-trl train --accelerate_config NAME` takes them by name."""

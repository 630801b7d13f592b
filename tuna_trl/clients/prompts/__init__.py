"""The prompt templates (Jinja) of the judges; a package only so that its files are installed."""

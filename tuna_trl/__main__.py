"""`python -m tuna_trl` = `tuna-trl`."""

from .cli import main


if __name__ == "__main__":
    main()

"""`python -m sslnlp` is `sslnlp`."""

from sslnlp.cli import main

if __name__ == "__main__":
    main()

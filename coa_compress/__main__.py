"""``python -m coa_compress``: the command line, also for torchrun."""

if __name__ == "__main__":
    from coa_compress.cli import main

    main()

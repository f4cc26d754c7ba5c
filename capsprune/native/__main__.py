"""Build the op library: `python -m capsprune.native`."""

from capsprune.native.build import main

main()

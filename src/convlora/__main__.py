"""`python -m convlora`, for launchers such as `accelerate launch -m convlora`."""

from convlora.cli import main

main()

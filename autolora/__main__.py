"""python -m autolora attack MODEL --data DATA; the console script `autolora` is the same."""

from autolora.command.main import main

main()

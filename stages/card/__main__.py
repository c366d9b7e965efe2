"""python -m stages.card [FOLDER]"""

from stages.card.page import main

main()

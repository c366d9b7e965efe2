"""python -m stages.card [FOLDER]"""

import sys

from stages.card.page import write_card

write_card(*sys.argv[1:])

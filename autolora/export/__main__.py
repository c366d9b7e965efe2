"""python -m autolora.export --show model.onnx"""

from autolora.export.write import main

main()

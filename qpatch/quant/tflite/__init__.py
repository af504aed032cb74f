"""Real .tflite files: made from our networks by paper C's policy, and run, exactly, from anyone's bytes.

`convert` writes int8, int16x8 and int4-weight files of a float network, `export` a trained view with its own codes. `network` runs a file as a predictor on an integer engine, and
`twin` gives the same network with gradients. Everything starts from the bytes: the file is the network.
"""

from qpatch.quant.tflite.convert import convert
from qpatch.quant.tflite.engines import ENGINES, installed
from qpatch.quant.tflite.predictor import Network, Twin, network, twin
from qpatch.quant.tflite.reader import read
from qpatch.quant.tflite.views import export
from qpatch.quant.tflite.writer import write

__all__ = ["ENGINES", "Network", "Twin", "convert", "export", "installed", "network", "read", "twin", "write"]

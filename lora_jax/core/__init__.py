"""Arrays and pytrees: paths, boxes, quantised weights, low-rank factors. Imports no Linen
module.
"""

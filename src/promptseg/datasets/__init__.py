"""What every stage reads, whatever data set it is from, and how: no stage knows where data came from.

Start with `records`: samples, pictures with their objects, and predictions, as JSON lines with run-length masks.
`archives` hold the encoded pictures, `preprocess` is the one way from a picture to the canvas and back, `tokenizer`
from a phrase to CLIP's ids. Imports files.
"""

"""X-Decoder's grounding path: a picture and phrases in, a mask for each phrase out.

Imports torch and its own package only. Start reading at `model.py`: the configuration with a builder for each size, and
`XDecoder`, whose `predict` is the one way from pictures and phrases to masks. A picture goes through a backbone
(backbone.py, or vit_backbone.py) and pixel_decoder.py, a phrase through text_encoder.py; mask_decoder.py lets object
queries attend to both. layers.py holds what several of them use.
"""

"""Networks that can be trained, exported and asked: functions of tensors, without files, devices or tokenizers.

Imports torch only, and nothing else of this project. Start reading at `xdecoder.model.XDecoder`.
"""

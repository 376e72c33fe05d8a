# What torcfg uses of txtorcon, which has no annotations.
class TorProtocolError(RuntimeError):
    code: int
    text: str

class Pass: ...  # for other extensions: see _passes.pxd

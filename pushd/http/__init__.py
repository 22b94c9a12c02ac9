"""HTTP/1.1 on the port: accepting, parsing, answering, and the hand-over of upgrades."""

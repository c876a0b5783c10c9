"""What `rare-trt bench` measures and on what."""

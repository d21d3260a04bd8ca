"""The Brevitas side: finds layers and quantizers, follows tensors, and applies widths."""

"""The Brevitas side: finding layers, quantizers, what gives and reads a tensor, applying widths."""

"""The same control over a stream: samples wait in bounded buffers, one for each class."""

"""What loggers, TensorBoard and the progress bar show."""

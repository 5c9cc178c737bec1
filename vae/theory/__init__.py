"""What is known exactly of linear encoders and decoders."""

"""Parts that encoders and decoders share: transformer decoder, views, pretrained weights, generation."""

"""What a frozen encoder answers, image by image and patch by patch."""

from minijepa.models.chunks import map_images


def extract_features(model, images, encoder="target", threads=None):
    """Patch features averaged over each image: uint8 images (N, 3, S, S) -> float32 (N, D) on the host.

    ``encoder``: "target" (what the specification evaluates) or "context".
    """
    return model.features(images, encoder, threads)


def extract_patches(model, images, encoder="target", threads=None):
    """Features of every patch: uint8 images (B, 3, S, S) -> float32 (B, N, D) on the host."""

    def patches(chunk):
        return model.encode(model.normalise(chunk), encoder).data

    return map_images(model, images, patches, (model.config.num_patches, model.config.encoder_embed_dim), threads)

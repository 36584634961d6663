"""Safe checkpoint loading on every route (placeholder filled by the loading work)."""


def install() -> None:
    return None


def safe_load(path, map_location='cpu'):
    import torch

    return torch.load(path, map_location=map_location, weights_only=True)

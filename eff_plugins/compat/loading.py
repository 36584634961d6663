"""Safe checkpoint loading on every route (placeholder filled by the loading work)."""


def install() -> None:
    return None

"""dry"""
from trainer.config import Config


def dry_run(config: Config) -> None:
    """x"""

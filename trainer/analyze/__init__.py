"""Looks into a trained network: ``python -m trainer.analyze RUN --what factors,landscape``.

Each analysis is a module whose ``analyse`` gives rows of numbers and what its figure shows; ``figures.py`` draws them.
"""

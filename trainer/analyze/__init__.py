"""``python -m trainer.analyze RUN --what factors,landscape``: analyses of a trained network.

Each analysis is a module whose ``analyse`` returns rows of numbers and the content of its figure; ``figures.py``
draws it.
"""

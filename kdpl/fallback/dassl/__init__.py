"""The parts of Dassl's interface that prompt learners use, on today's PyTorch; in use if no Dassl is installed."""

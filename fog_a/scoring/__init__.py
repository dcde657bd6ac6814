"""Scores and what is made of them: intervals, rankings, files, and the choice of layers."""

"""Scores and what is made of them: intervals, rankings, files, pictures, and the choice of layers."""

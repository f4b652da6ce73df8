"""Scoring with a trained run elsewhere: predictions for a dataset, exports, and the Predictor that loads them."""

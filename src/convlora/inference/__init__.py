"""Prediction of single images and folders, and pictures of the results."""

"""Prediction with OpenVINO: the adapted model converted, kept on the disk, and compared with PyTorch."""

"""The sub-commands of keras-audiolm, one file each."""

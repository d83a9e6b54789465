"""The version, in one place: the build, the libraries' build facts and the changelog's check read it here."""

__version__ = "0.1.0"

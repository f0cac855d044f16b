"""Supermasks: SupSup, ExSSNeT and KKT over networks whose weights all sessions share."""

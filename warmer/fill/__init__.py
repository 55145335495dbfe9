"""Fill: lock, look again, fetch or build into staging, verify, publish, restore."""

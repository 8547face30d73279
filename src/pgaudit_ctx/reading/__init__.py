"""Reading the trail: ``query`` builds, ``version`` rebuilds, ``reader`` does the I/O."""

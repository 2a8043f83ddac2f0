"""The claims: the measurements that each needs, and its report."""

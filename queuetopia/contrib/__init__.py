"""What joins Queuetopia with other libraries; each module names the extra that brings its library."""

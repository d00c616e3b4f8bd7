//! Where metrics are served.

use std::net::{SocketAddr, ToSocketAddrs as _};

use crate::args::MetricsArgs;
use crate::failure::{Failure, Result};

/// The address, if there is to be one. Who is not asked who he is may only come from this host, unless that was wanted.
pub(crate) fn metrics(args: &MetricsArgs) -> Result<Option<SocketAddr>> {
    let Some(text) = &args.metrics else {
        return Ok(None);
    };
    let no_address = || {
        Failure::usage(format!("`{text}` is no address for metrics"))
            .hint("HOST:PORT, as in 127.0.0.1:9750")
    };
    let mut found = text.to_socket_addrs().map_err(|_| no_address())?;
    let address = found.next().ok_or_else(no_address)?;
    if !address.ip().is_loopback() && !args.metrics_anywhere {
        let what = format!("`{text}` can be reached from other hosts");
        let hint = "--metrics-anywhere allows it; nobody is asked who he is";
        return Err(Failure::usage(what).hint(hint));
    }
    Ok(Some(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_hosts_read_metrics_only_if_that_was_said() {
        let plan = |at: &str, metrics_anywhere| {
            metrics(&MetricsArgs {
                metrics: Some(at.to_owned()),
                metrics_anywhere,
            })
        };
        assert!(metrics(&MetricsArgs::default()).is_ok_and(|at| at.is_none()));
        for at in ["127.0.0.1:9750", "[::1]:0", "localhost:9750"] {
            assert!(plan(at, false).is_ok_and(|at| at.is_some()), "{at}");
        }
        for at in ["0.0.0.0:9750", "[::]:9750", "192.0.2.1:9750"] {
            assert!(plan(at, false).is_err(), "{at}");
            assert!(plan(at, true).is_ok_and(|at| at.is_some()), "{at}");
        }
        for at in ["9750", "", "127.0.0.1", "127.0.0.1:x"] {
            assert!(plan(at, true).is_err(), "{at}");
        }
    }
}

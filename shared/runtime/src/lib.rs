//! The parts of every Naru process that do not concern chat: configuration, signals, supervision, telemetry, admin.
//!
//! | module | one sentence |
//! |---|---|
//! | [`config`] | every key is in one readable file; flags, environment and a TOML file set it; errors name key and place |
//! | [`limits`] | the open files that the system allows one process |
//! | [`signal`] | the first SIGTERM, Ctrl-C or SIGHUP starts the drain, a second SIGTERM or Ctrl-C exits at once |
//! | [`supervisor`] | every task has a name, an owner and a failure policy; shutdown drains by a deadline |
//! | [`telemetry`] | log lines on stderr, metrics to be scraped |
//! | `repeats` | of what fails over and over, the log has some lines and a count |
//! | [`output`] | lines on stdout and stderr, which never fail or block the task that prints them |
//! | [`admin`] | `/healthz`, `/readyz`, `/metrics` |
//! | [`backoff`] | the delay before the next attempt |
//!
//! Together they make the program of each worker:
//!
//! ```no_run
//! use naru_runtime::telemetry::{self, LogFormat};
//! use naru_runtime::{AdminServer, Program, Health, Metrics, Policy, Settings, Span, Supervisor, config, output, signal};
//!
//! const PROGRAM: Program = Program {
//!     name: "persister",
//!     about: "Saves accepted messages and confirms them.",
//!     overrides: &[("admin_listen", "127.0.0.1:9102")],
//! };
//!
//! #[derive(serde::Deserialize)]
//! struct Config {
//!     admin_listen: std::net::SocketAddr,
//!     drain_deadline: Span,
//!     log: String,
//!     log_format: LogFormat,
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let matches = Settings::command(&PROGRAM).get_matches();
//!     let settings = Settings::load(&PROGRAM, &matches, config::environment())?;
//!     if Settings::print_wanted(&matches) {
//!         print!("{}", settings.print());
//!         return Ok(());
//!     }
//!     let config: Config = settings.pick()?;
//!     telemetry::init(&config.log, config.log_format)?;
//!     for name in settings.unknown_environment() {
//!         tracing::warn!(name, "an environment variable that no key has");
//!     }
//!
//!     let shutdown = signal::shutdown()?;
//!     let metrics = Metrics::new();
//!     let health = Health::new(shutdown.clone());
//!     let supervisor = Supervisor::new(PROGRAM.name, shutdown.clone(), &metrics);
//!     let (admin, address) = AdminServer::bind(config.admin_listen, health, metrics).await?;
//!     output::line(format_args!("listening on http://{address}"));
//!
//!     let admin = std::sync::Arc::new(admin);
//!     supervisor.spawn("admin", Policy::Restart, move |stop| {
//!         let admin = admin.clone();
//!         async move { admin.serve(stop).await }
//!     });
//!     supervisor.run(config.drain_deadline.into()).await?;
//!     Ok(())
//! }
//! ```

pub mod admin;
pub mod backoff;
pub mod config;
pub mod limits;
pub mod output;
mod repeats;
pub mod signal;
pub mod supervisor;
pub mod telemetry;

pub use admin::{AdminServer, Health};
pub use backoff::Backoff;
pub use config::{ConfigError, Program, Secret, Settings, Source, Span};
pub use supervisor::{Policy, Supervisor};
pub use telemetry::Metrics;

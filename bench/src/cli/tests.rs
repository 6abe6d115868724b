//! The command lines of the documentation.

use super::*;

fn parse(line: &str) -> ArgMatches {
    let matches = command().try_get_matches_from(line.split(' ')).expect("parses");
    matches.subcommand().expect("required").1.clone()
}

#[test]
fn the_commands_of_the_documentation_parse() {
    command().debug_assert();
    let this = std::process::id();
    let line =
        format!("naru-bench flow --url u --url v --secret S --rate 500 --duration 20s --pid {this} --json");
    let options = flow_options(&parse(&line)).expect("this process runs");
    assert_eq!((options.rate, options.warmup, options.groups.len()), (500, Duration::from_secs(3), 1));
    assert_eq!([0, 1, 2].map(|number| options.server.url(number)), ["u", "v", "u"]);
    let line = "naru-bench push --url u --secret S --phones p --platform fcm --pid 1";
    let options = push_options(&parse(line));
    assert_eq!((options.recipients * options.messages, options.pid), (5_000, Some(1)));
    let line = format!("naru-bench idle --url u --secret S --connections 4000 --pid {this}");
    let options = idle_options(&parse(&line)).expect("this process runs");
    assert_eq!(options.groups[0].pids, [this]);
    let line = "naru-bench overload --url u --secret S --rate 48000 --pairs 500 --pid 1 --max-memory 640";
    let line = line.replace("--pid 1", &format!("--pid {this}"));
    let options = overload_options(&parse(&line)).expect("this process runs");
    assert_eq!((options.flow.rate, options.flow.pairs, &options.pids[..]), (48_000, 500, &[this][..]));
    let options = storm_options(&parse("naru-bench storm --url u --secret S --connections 5000"));
    assert_eq!(options.expect("legal").per_second, 1_000);
    let options = stranger_options(&parse("naru-bench stranger --url u --secret S")).expect("legal");
    assert_eq!((options.sockets, options.duration), (50, Duration::from_secs(60)));
    let options = memory_options(&parse("naru-bench memory --url u --secret S --pid 1 --max-memory 640"));
    assert_eq!(options.expect("legal").max_memory_mib, 640);
    let line = "naru-bench fill --url u --secret S --messages 1000 --rooms 10";
    assert_eq!(amount(&parse(line)).messages, 1000);
}

#[test]
fn a_comparison_is_described() {
    let line = "naru-bench compare --rounds 5 --duration 10s --rates 300,1000,2000 --out target/comparison";
    let options = compare_options(&parse(line));
    assert_eq!((options.rounds, &options.rates[..]), (5, &[300, 1000, 2000][..]));
    assert_eq!((&options.connections[..], options.fill.is_none()), (&[1000, 2000, 4000][..], true));
    let line = "naru-bench compare --fill-messages 1000000 --fill-rooms 100000";
    let fill = compare_options(&parse(line)).fill.expect("asked for");
    assert_eq!((fill.messages, fill.rooms, fill.bytes), (1_000_000, 100_000, 100));
    let line = "naru-bench peak --systems naru,socketio";
    let matches = parse(line);
    assert_eq!(list::<String>(&matches, "systems"), ["naru", "socketio"]);
    assert!((peak_options(&matches).precision - 0.05).abs() < 1e-9);
}

#[test]
fn old_data_is_removed_unless_it_is_asked_for() {
    let data = std::env::temp_dir().join(format!("naru-bench-data-{}", std::process::id()));
    for folder in ["naru", "mine"] {
        fs::create_dir_all(data.join(folder)).expect("a temporary directory");
    }
    let line = format!("naru-bench compare --set NARU_LOG=info --naru /bin --data {}", data.display());
    let directories_of = |line: &str| directories(&parse(line)).expect("legal");
    directories_of(&format!("{line} --keep-data"));
    assert!(data.join("naru").exists());
    let directories = directories_of(&line);
    assert!(!data.join("naru").exists() && data.join("mine").exists());
    assert_eq!(directories.variables, [("NARU_LOG".to_owned(), "info".to_owned())]);
    fs::remove_dir_all(&data).expect("made above");
}

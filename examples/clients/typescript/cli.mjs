#!/usr/bin/env node
// Prints each event of a session as a line of JSON, as the server sent it.
import { SessionLog } from "./dist/sessionlog-client.js";

const [url, session, ...message] = process.argv.slice(2);
if (session === undefined || message.length > 1) {
  console.error("usage: sessionlog-client URL SESSION [MESSAGE]");
  process.exit(2);
}
const onRetry = (failure, pause) =>
  console.error(`${failure.message}. Again in ${(pause / 1000).toFixed(1)} s`);
const log = new SessionLog(url, { key: process.env.SESSIONLOG_API_KEY, onRetry });
try {
  for (const text of message) await log.sendMessage(session, text);
  const follow = log.follow(session);
  for await (const _event of follow) console.log(follow.text);
  console.error(`the session is ${follow.ended}`);
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}

// flying-squid, a whole Minecraft server: a flat world, offline mode.
// node squid.js [--motd TEXT] [--version V]; prints one JSON line with its address, then one per event.
'use strict'
const { createMCServer } = require('flying-squid')
const { parseArgs } = require('node:util')

const { values: chosen } = parseArgs({
  options: {
    motd: { type: 'string', default: 'flying-squid' },
    version: { type: 'string', default: '1.20.3' }
  }
})

const tell = (event) => process.stdout.write(JSON.stringify(event) + '\n')

const server = createMCServer({
  motd: chosen.motd,
  host: '127.0.0.1',
  port: 0,
  version: chosen.version,
  'online-mode': false,
  'max-players': 20,
  'max-entities': 20,
  'view-distance': 4,
  'everybody-op': false,
  'player-list-text': { header: { text: '' }, footer: { text: '' } },
  gameMode: 1,
  difficulty: 0,
  generation: { name: 'superflat', options: { worldHeight: 80 } },
  kickTimeout: 20000,
  logging: false,
  modpe: false,
  plugins: {}
})
server.on('newPlayer', (player) => {
  player.on('connected', () => tell({ event: 'joined', name: player.username }))
  player.on('chat', ({ message }) => tell({ event: 'said', name: player.username, text: message }))
  player.on('disconnected', () => tell({ event: 'left', name: player.username }))
})
server.on('error', (error) => { tell({ event: 'error', text: String(error) }); process.exitCode = 1 })
server.waitForReady(60000).then(() => tell({ event: 'listening', port: server.listeningPort }))

// The test holds our standard input: when it ends, however it ends, so do we.
process.stdin.on('end', () => process.exit()).resume()
